"""From a trained model to masks."""
