"""Features of new videos, made as a checkpoint's training features were."""
