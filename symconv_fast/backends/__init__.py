"""Backends: each module computes the three operators its own way; `symconv_fast.dispatch` lists and chooses them."""
