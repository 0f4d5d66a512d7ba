"""The live proof: a throwaway pod tries to reach the metadata service, straight and by every bypass."""
