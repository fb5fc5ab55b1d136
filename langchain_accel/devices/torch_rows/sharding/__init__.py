"""One model over several ranks: each holds its share of every weight matrix and its share of the heads.

Every rank runs the same forward; layers whose inputs are split among the ranks sum their outputs over the group.
"""
