"""What every training recipe shares: setup, the loop, checkpoints. Built on Hugging Face accelerate."""
