"""Language models: WikiText-103, enwik8, PG-19, and any folder of text."""
