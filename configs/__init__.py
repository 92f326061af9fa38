"""The configs that come with detkit, one complete file each: `<detector>/<detector>_<backbone>_<data>.yaml`."""
