//! Who makes a request.

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User name, such as `kubernetes-admin`.
    pub name: String,
    /// Groups, such as `system:masters`.
    pub groups: Vec<String>,
}
