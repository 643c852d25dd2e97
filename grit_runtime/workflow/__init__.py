"""Capture, restore, verify, recover: steps over the mechanisms below. What is decided stands in `plan`, which touches
nothing.
"""
