"""Coding: the tables of a trained model in a few bits a number, where each bit saves the most loss."""
