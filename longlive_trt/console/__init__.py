"""What a person sees and types: quotes, numbers in words, progress, streams, signals."""
