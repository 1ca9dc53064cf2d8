"""The layers of one Megalodon block."""
