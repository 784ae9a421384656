"""What a fleet keeps where every machine reaches it: owners, news, states."""
