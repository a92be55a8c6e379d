"""The one trainer behind pretrain, sft and dpo: transformers' Trainer and TRL with our recipe and checkpoints."""
