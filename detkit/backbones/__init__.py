"""Networks that turn a picture into feature maps."""
