"""From a trained model to a voice: graphs, parity gate, publishing."""
