//! What the CSI sidecars do, for any CSI driver: register, provision, publish capacity.
