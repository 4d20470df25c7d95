"""The commands of ``handdata``, a module for each part of the road; ``handdata.cli`` joins them.

A command parses, calls one library function and prints. Libraries are imported inside the commands, so that
``handdata --help`` answers at once.
"""
