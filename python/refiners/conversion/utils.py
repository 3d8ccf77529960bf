"""The tools that recipes of conversion are made of."""

from refiners.conversion.convert import Conversion
from refiners.conversion.download import download_file_url
from refiners.conversion.hub import Hub
from refiners.conversion.recipe import AnyDict, TensorDict, WeightRecipe

__all__ = ["AnyDict", "Conversion", "Hub", "TensorDict", "WeightRecipe", "download_file_url"]
