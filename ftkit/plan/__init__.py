"""What a configuration needs and how long it takes, told before it runs."""
