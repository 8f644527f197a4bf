"""The proof: what a tuned model learned, what it kept, and which of its checkpoints to use."""
