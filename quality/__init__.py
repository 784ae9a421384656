"""How good a bundle's videos are: prompt sets, measurements, reports."""
