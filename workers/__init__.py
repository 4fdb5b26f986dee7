"""The Ray processes, thin skins over the plain classes of the other rooms."""
