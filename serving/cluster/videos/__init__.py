"""Whole videos of a fleet: ordered at a gateway, made by hosts, kept in the store."""
