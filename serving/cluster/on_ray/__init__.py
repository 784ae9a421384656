"""The fleet on Ray Serve; nothing else imports Ray."""
