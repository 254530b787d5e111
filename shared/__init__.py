"""What the programs share: errors, configuration, store, registry, text, audio, metrics. Never imports torch."""
