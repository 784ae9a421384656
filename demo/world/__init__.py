"""The renderer: scenes in, video clips out, on whatever device the scenes live."""
