"""The command line of ftrain, installed as the package `ftrain_cli`: parse, check, call, draw."""
