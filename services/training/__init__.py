"""Fine-tuning: data, features, discriminator, losses, loop, tracking."""
