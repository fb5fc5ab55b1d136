"""Stand-in of the vendor's package; see the folder above."""
