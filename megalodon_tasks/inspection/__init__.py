"""What a trained Megalodon does: CEMA's kernels, the attention of a chunk, the activity of the gates.

kernels.py    kernels and rates of CEMA
observe.py    queries, keys and gates of one forward pass
pictures.py   drawing all of these
"""
