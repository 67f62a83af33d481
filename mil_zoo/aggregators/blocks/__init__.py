"""Layers that several aggregators are made of."""
