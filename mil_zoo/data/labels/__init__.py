"""Where labels come from: tables of slides, annotations and outlines of lesions."""
