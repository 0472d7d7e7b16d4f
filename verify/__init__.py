"""Proves what was built: tiny random models, inputs for them, and a comparison with upstream's eager results.

Needs torch and Transformers. Neither codegen nor the command line imports it when it starts.
"""
