"""What an encoder trains for alone, without a decoder: to fill in what is kept from it."""
