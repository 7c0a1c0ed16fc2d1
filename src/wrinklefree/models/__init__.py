"""Models: attention masks, folders on disk, surgery, dense bases."""
