"""Training steps timed against each other and against timm's."""
