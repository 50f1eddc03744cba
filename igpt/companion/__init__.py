"""The machinery around the notebooks: it declares, plans, runs, submits, reports and times experiments.

The science is in the other packages of igpt. Of these only `igpt.pretrained` imports this one, for trained recipes.
"""
