"""Use a trained model: talk to it, serve it, export it. Not for training or judging one."""
