"""Lets tests import what stands in this folder."""
