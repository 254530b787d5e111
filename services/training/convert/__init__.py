"""Other trainers' checkpoints, turned into folders that training starts from."""
