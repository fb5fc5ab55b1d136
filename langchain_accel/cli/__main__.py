"""`python -m langchain_accel.cli`: the command line of exactly this interpreter."""

from langchain_accel.cli import main

main()
