"""Verifying: what the verb `verify` compares a store with.

    comparing   another store: `--against`, field by field and row by row     differing   what of it differs, in sentences
    precision   what float16, bfloat16 and int8 lose of float32 on recomputed rows

What a store finds of its own damages, and how it is mended, is at the door of `featurecache.stores`.
"""
