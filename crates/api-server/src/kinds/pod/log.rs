//! Which container's log is asked for.

use serde_json::Value;

use crate::object;

/// What to say while a container is waiting to start, as kubelet says it: with the reason from its status.
pub(crate) fn waiting(pod: &Value, container: &str) -> String {
    let all = ["initContainerStatuses", "containerStatuses"];
    let reason = all
        .iter()
        .flat_map(|field| pod["status"][field].as_array().into_iter().flatten())
        .find(|status| status["name"] == container)
        .and_then(|status| status["state"]["waiting"]["reason"].as_str());
    let name = object::name(pod);
    match reason {
        Some(reason) => format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"),
        None => format!("container \"{container}\" in pod \"{name}\" is waiting to start - no logs yet"),
    }
}

/// The container whose log is meant: the named one, or the only one.
///
/// # Errors
/// What the client has to say.
pub(crate) fn container(pod: &Value, asked: Option<&str>) -> Result<String, String> {
    let names = |field: &str| -> Vec<&str> {
        let containers = pod["spec"][field].as_array();
        containers.into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let name = object::name(pod);
    match asked {
        Some(asked) if main.contains(&asked) || init.contains(&asked) => Ok(asked.to_owned()),
        Some(asked) => Err(format!("container {asked} is not valid for pod {name}")),
        None if main.len() == 1 => Ok(main[0].to_owned()),
        None => {
            let mut choose = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                main.join(" ")
            );
            if !init.is_empty() {
                choose.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(choose)
        }
    }
}
