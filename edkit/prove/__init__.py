"""What a tuned model learned and what it kept."""
