"""The theory of masked image generation: knows no model, no method and no training. Imports torch only."""
