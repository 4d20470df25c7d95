"""Commands of ``handdata``, one module for each part of the pipeline; ``handdata.app`` joins them.

A command parses, calls one library function and prints. It imports that library when it runs, so that
``handdata --help`` answers at once.
"""
