"""Who answers. Each module is one peer's software, imported in a process and a virtual environment of its own.

A module offers `load(folder, threads, **settings) -> Answer`, and where the peer wants the model in a form of its own,
`prepare(source, into, **settings)`, which writes that form of a checkpoint folder into an empty one.
"""
