"""Strategies of learning a task, around the Trainer: on the weights themselves, or on adapters of them."""
