"""Networks on the evaluation images, and what differences between them are worth."""
