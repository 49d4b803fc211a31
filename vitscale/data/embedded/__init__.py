"""The Fashion-MNIST subset that ships with vitscale; see NOTICE."""
