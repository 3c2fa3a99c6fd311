"""`flmm backbones new`: a package for a family of models, filled in by measurement.

facts      what a model's config and processor say, measured where they do not
toy        the same model at toy width, with random weights, for the tests
package    the files
"""
