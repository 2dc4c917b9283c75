"""Features of new videos, extracted as a checkpoint's training features were."""
