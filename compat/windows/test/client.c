// SPDX-License-Identifier: Apache-2.0
/*
 * client.c - a Windows program that drives every export of the two libraries against a daemon, as others' programs do:
 * libraries from system32, GUIDs by reference, results and error records freed with CoTaskMemFree.
 *
 * Prints a line for every expectation; the exit status is the number of those that were not met.
 */
#include "expect.h"

static int threads_wrong;
static volatile LONG notified;

static void CALLBACK on_notification(DWORD type, void *context, HRESULT status, const WCHAR *data)
{
	if (type == 2 && context == &wrong && status == 0 && wcsstr(data, L"\"ID\""))
		InterlockedIncrement(&notified);
}

static const GUID NETWORK = { 0x11111111, 0x2222, 0x3333, { 0x44, 0x44, 1, 2, 3, 4, 5, 6 } };
static const GUID ENDPOINT = { 0x11111111, 0x2222, 0x3333, { 0x44, 0x44, 1, 2, 3, 4, 5, 7 } };
static const GUID BALANCER = { 0x11111111, 0x2222, 0x3333, { 0x44, 0x44, 1, 2, 3, 4, 5, 8 } };
static const GUID SPACE = { 0x11111111, 0x2222, 0x3333, { 0x44, 0x44, 1, 2, 3, 4, 5, 9 } };
static const GUID ROUTE = { 0x11111111, 0x2222, 0x3333, { 0x44, 0x44, 1, 2, 3, 4, 5, 10 } };
static const GUID NOBODY = { 0xdeadbeef, 0, 0, { 0 } };
static const GUID ZERO;

static const WCHAR NETWORK_SETTINGS[] =
	L"{\"SchemaVersion\":{\"Major\":2,\"Minor\":0},\"Name\":\"wine-\u00e4\u4e2d\",\"Type\":\"Overlay\",\"Ipams\":[{\"Type\":"
	L"\"Static\",\"Subnets\":[{\"IpAddressPrefix\":\"10.77.0.0/24\",\"Routes\":[{\"NextHop\":\"10.77.0.1\","
	L"\"DestinationPrefix\":\"0.0.0.0/0\"}],\"Policies\":[{\"Type\":\"VSID\",\"Settings\":{\"IsolationId\":4097}}]}]}]}";

/* Opens, queries and closes an object by the exports of its kind, and refuses what is none. */
static void walk(const char *kind, const GUID *id, const WCHAR *part)
{
	char name[64];
	void *handle = NULL, *other = NULL;
	WCHAR *result = NULL, *error = NULL;
	HRESULT hr;

	snprintf(name, sizeof(name), "HcnOpen%s", kind);
	hr = ((f3)get(network_library, name))(id, &handle, &error);
	expect(hr == S_OK && handle && !error, name);
	hr = ((f3)get(network_library, name))(&NOBODY, &other, &error);
	expect(hr == NOT_FOUND && !other && said(error, L"\"ErrorCode\""), "an unknown ID is not found");
	snprintf(name, sizeof(name), "HcnQuery%sProperties", kind);
	error = NULL;
	hr = ((f4)get(network_library, name))(handle, L"", &result, &error);
	expect(hr == S_OK && !error && said(result, part), name);
	snprintf(name, sizeof(name), "HcnEnumerate%ss", kind);
	result = NULL;
	hr = ((f3)get(network_library, name))(L"", &result, &error);
	expect(hr == S_OK && !error && said(result, L"11111111-2222-3333-4444-0102030405"), name);
	snprintf(name, sizeof(name), "HcnClose%s", kind);
	expect(((f1)get(network_library, name))(handle) == S_OK, name);
	expect(((f1)get(network_library, name))(handle) != S_OK, "a closed handle is no handle");
	snprintf(name, sizeof(name), "HcnQuery%sProperties", kind);
	hr = ((f4)get(network_library, name))(handle, L"", &result, &error);
	expect(FAILED(hr) && !result && said(error, L"handle"), "nothing is asked by a closed handle");
}

static void create_all(void)
{
	void *network = NULL, *endpoint = NULL, *handle = NULL;
	WCHAR *error = NULL, *result = NULL;
	HRESULT hr;

	hr = ((f4)HCN(HcnCreateNetwork))(&NETWORK, NETWORK_SETTINGS, &network, &error);
	expect(hr == S_OK && network && !error, "HcnCreateNetwork");
	hr = ((f4)HCN(HcnCreateNetwork))(&NETWORK, NETWORK_SETTINGS, &handle, &error);
	expect(hr == (HRESULT)0x803b0010 && said(error, L"2151350288"), "a network that exists: 0x803B0010 and its record");
	hr = ((f4)HCN(HcnCreateNetwork))(&ZERO, L"{broken", &handle, &error);
	expect(hr == (HRESULT)0x803b001b && said(error, L"Error"), "broken JSON: 0x803B001B");
	error = NULL;
	hr = ((f5)HCN(HcnCreateEndpoint))(network, &ENDPOINT, L"{\"SchemaVersion\":{\"Major\":2,\"Minor\":0},\"Name\":\"e\"}",
					  &endpoint, &error);
	expect(hr == S_OK && endpoint && !error, "HcnCreateEndpoint");
	hr = ((f4)HCN(HcnQueryEndpointStats))(endpoint, L"", &result, &error);
	expect(hr == S_OK && said(result, L"BytesReceived"), "HcnQueryEndpointStats");
	hr = ((f4)HCN(HcnQueryEndpointAddresses))(endpoint, L"", &result, &error);
	expect(hr == S_OK && said(result, L"10.77.0."), "HcnQueryEndpointAddresses");
	hr = ((f3)HCN(HcnModifyEndpoint))(endpoint,
					  L"{\"ResourceType\":\"Policy\",\"RequestType\":\"Add\",\"Settings\":{\"Policies\":[{"
					  L"\"Type\":\"ACL\",\"Settings\":{\"Action\":\"Block\",\"Direction\":\"Out\","
					  L"\"Priority\":100}}]}}",
					  &error);
	expect(hr == S_OK && !error, "HcnModifyEndpoint");
	hr = ((f3)HCN(HcnModifyNetwork))(network, L"{\"ResourceType\":\"Nonsense\"}", &error);
	expect(FAILED(hr) && said(error, L"Success"), "HcnModifyNetwork says what is wrong");
	error = NULL;
	hr = ((f4)HCN(HcnCreateNamespace))(&SPACE, L"{\"SchemaVersion\":{\"Major\":2,\"Minor\":0}}", &handle, &error);
	expect(hr == S_OK && !error, "HcnCreateNamespace");
	((f1)HCN(HcnCloseNamespace))(handle);
	hr = ((f4)HCN(HcnCreateLoadBalancer))(
		&BALANCER,
		L"{\"SchemaVersion\":{\"Major\":2,\"Minor\":0},\"HostComputeEndpoints\":[\"11111111-2222-3333-4444-010203040507\"],"
		L"\"FrontendVIPs\":[\"10.96.0.9\"],\"PortMappings\":[{\"Protocol\":6,\"InternalPort\":80,\"ExternalPort\":8080}]}",
		&handle, &error);
	expect(hr == S_OK && !error, "HcnCreateLoadBalancer");
	((f1)HCN(HcnCloseLoadBalancer))(handle);
	hr = ((f4)HCN(HcnCreateSdnRoute))(
		&ROUTE,
		L"{\"SchemaVersion\":{\"Major\":2,\"Minor\":0},\"HostComputeNetwork\":\"11111111-2222-3333-4444-010203040506\","
		L"\"HostComputeEndpoints\":[\"11111111-2222-3333-4444-010203040507\"],\"Routes\":[{\"DestinationPrefix\":"
		L"\"10.96.0.0/12\",\"NextHop\":\"10.77.0.1\",\"NeedEncap\":true}]}",
		&handle, &error);
	expect(hr == S_OK && !error, "HcnCreateSdnRoute");
	((f1)HCN(HcnCloseSdnRoute))(handle);
	expect(((f1)HCN(HcnCloseEndpoint))(network) != S_OK, "a network's handle is no endpoint's");
	((f1)HCN(HcnCloseEndpoint))(endpoint);
	((f1)HCN(HcnCloseNetwork))(network);
}

/* Opens an object, modifies it by the export of its kind, closes it. */
static void modify(const char *kind, const GUID *id, const WCHAR *settings, HRESULT wanted)
{
	char name[64];
	void *handle = NULL;
	WCHAR *error = NULL;
	HRESULT hr;

	snprintf(name, sizeof(name), "HcnOpen%s", kind);
	expect(((f3)get(network_library, name))(id, &handle, &error) == S_OK, name);
	snprintf(name, sizeof(name), "HcnModify%s", kind);
	hr = ((f3)get(network_library, name))(handle, settings, &error);
	expect(hr == wanted && (wanted == S_OK ? !error : said(error, L"ErrorCode")), name);
	snprintf(name, sizeof(name), "HcnClose%s", kind);
	((f1)get(network_library, name))(handle);
}

static void modify_all(void)
{
	static const WCHAR member[] = L"{\"ResourceType\":\"Endpoint\",\"RequestType\":\"%ls\",\"Settings\":{\"EndpointId\":"
				      L"\"11111111-2222-3333-4444-010203040507\"}}";
	WCHAR settings[256];

	modify("Network", &NETWORK, L"{\"ResourceType\":\"DNS\",\"RequestType\":\"Add\",\"Settings\":{\"Domain\":\"wine\"}}", S_OK);
	for (int i = 0; i < 2; i++) {
		_snwprintf(settings, 256, member, i ? L"Remove" : L"Add");
		modify("Namespace", &SPACE, settings, S_OK);
	}
	modify("LoadBalancer", &BALANCER,
	       L"{\"SchemaVersion\":{\"Major\":2,\"Minor\":0},\"HostComputeEndpoints\":[\"11111111-2222-3333-4444-010203040507\"],"
	       L"\"FrontendVIPs\":[\"10.96.0.9\"],\"PortMappings\":[{\"Protocol\":6,\"InternalPort\":81,\"ExternalPort\":8080}]}",
	       S_OK);
	modify("SdnRoute", &ROUTE, L"{\"ResourceType\":\"Route\",\"RequestType\":\"Add\",\"Settings\":{}}", (HRESULT)0x803b0015);
}

static void delete_all(void)
{
	static const struct {
		const char *name;
		const GUID *id;
	} objects[] = { { "HcnDeleteLoadBalancer", &BALANCER },
			{ "HcnDeleteSdnRoute", &ROUTE },
			{ "HcnDeleteNamespace", &SPACE },
			{ "HcnDeleteEndpoint", &ENDPOINT },
			{ "HcnDeleteNetwork", &NETWORK } };

	for (size_t i = 0; i < sizeof(objects) / sizeof(objects[0]); i++) {
		WCHAR *error = NULL;
		HRESULT hr = ((f2)get(network_library, objects[i].name))(objects[i].id, &error);

		expect(hr == S_OK && !error, objects[i].name);
		hr = ((f2)get(network_library, objects[i].name))(objects[i].id, &error);
		expect(FAILED(hr) && said(error, L"ErrorCode"), "what is gone cannot be deleted");
	}
}

static void call_hns(void)
{
	f4 hns_call = (f4)get(compute_library, "HNSCall");
	WCHAR *response = NULL;

	expect(hns_call(L"GET", L"/globals/version", L"", &response) == S_OK && said(response, L"\"Major\":15"),
	       "HNSCall: globals/version");
	expect(hns_call(L"GET", L"/networks/", L"", &response) == S_OK && said(response, L"wine-\u00e4\u4e2d"),
	       "HNSCall: a name beyond ASCII");
	expect(hns_call(L"GET", L"/endpoints/nobody", L"", &response) == S_OK && said(response, L"\"Success\":false"),
	       "HNSCall: an error is in the envelope");
	expect(hns_call(L"PATCH", L"/networks/", L"", &response) == E_INVALIDARG && !response, "HNSCall: GET, POST, DELETE only");
}

/* Calls a function with the name of each export of a library, as its file has them. */
static void for_each_export(HMODULE library, void (*visit)(HMODULE library, const char *name))
{
	const BYTE *base = (const BYTE *)library;
	const IMAGE_NT_HEADERS *headers = (const IMAGE_NT_HEADERS *)(base + ((const IMAGE_DOS_HEADER *)base)->e_lfanew);
	const IMAGE_DATA_DIRECTORY *where = &headers->OptionalHeader.DataDirectory[IMAGE_DIRECTORY_ENTRY_EXPORT];
	const IMAGE_EXPORT_DIRECTORY *table = (const IMAGE_EXPORT_DIRECTORY *)(base + where->VirtualAddress);
	const DWORD *names = (const DWORD *)(base + table->AddressOfNames);

	for (DWORD i = 0; i < table->NumberOfNames; i++)
		visit(library, (const char *)base + names[i]);
}

/* Compute systems and the guest network service: there to be found, and not implemented. */
static void call_what_is_not_there(HMODULE library, const char *name)
{
	if (!strncmp(name, "Hcs", 3) || strstr(name, "GuestNetwork"))
		expect(((f1)get(library, name))(NULL) == E_NOTIMPL, name);
}

static void expect_called(HMODULE library, const char *name)
{
	char what[96];

	(void)library;
	snprintf(what, sizeof(what), "%s has been called", name);
	expect(was_asked(name), what);
}

static DWORD WINAPI ask_often(void *unused)
{
	f3 enumerate = (f3)HCN(HcnEnumerateNetworks);

	(void)unused;
	for (int i = 0; i < 25; i++) {
		WCHAR *result = NULL, *error = NULL;

		if (enumerate(L"", &result, &error) != S_OK || error || !result)
			threads_wrong++;
		CoTaskMemFree(result);
	}
	return 0;
}

/* Go's runtime asks it for random numbers before anything else. */
static void ask_for_random(void)
{
	HMODULE library = LoadLibraryExW(L"bcryptprimitives.dll", NULL, LOAD_LIBRARY_SEARCH_SYSTEM32);
	typedef BOOL(WINAPI * random_t)(void *, SIZE_T);
	unsigned char one[48] = { 0 }, two[48] = { 0 };
	random_t random = library ? (random_t)get(library, "ProcessPrng") : NULL;

	expect(random && random(one, 32) && random(two, 32) && memcmp(one, two, 32) && !one[32], "ProcessPrng");
}

static void ask_from_threads(void)
{
	HANDLE threads[4];

	for (int i = 0; i < 4; i++)
		threads[i] = CreateThread(NULL, 0, ask_often, NULL, 0, NULL);
	WaitForMultipleObjects(4, threads, TRUE, 60000);
	expect(!threads_wrong, "a hundred calls from four threads");
}

int main(void)
{
	void *registration = NULL, *service = NULL;
	WCHAR *error = NULL;

	if (load_libraries())
		return wrong;
	expect(((f2)HCN(HcnOpenService))(&service, &error) == S_OK && !error, "HcnOpenService");
	expect(((f3)HCN(HcnRegisterServiceCallback))((void *)(uintptr_t)on_notification, &wrong, &registration) == S_OK,
	       "HcnRegisterServiceCallback");
	create_all();
	walk("Network", &NETWORK, L"wine-\u00e4\u4e2d");
	walk("Endpoint", &ENDPOINT, L"11111111-2222-3333-4444-010203040507");
	walk("Namespace", &SPACE, L"11111111-2222-3333-4444-010203040509");
	walk("LoadBalancer", &BALANCER, L"10.96.0.9");
	walk("SdnRoute", &ROUTE, L"10.96.0.0/12");
	modify_all();
	call_hns();
	for_each_export(compute_library, call_what_is_not_there);
	for_each_export(network_library, call_what_is_not_there);
	ask_for_random();
	ask_from_threads();
	delete_all();
	for (int i = 0; i < 500 && !notified; i++)
		Sleep(10);
	expect(notified == 1, "one network was announced");
	expect(((f1)HCN(HcnUnregisterServiceCallback))(registration) == S_OK, "HcnUnregisterServiceCallback");
	expect(((f1)HCN(HcnCloseService))(service) == S_OK, "HcnCloseService");
	for_each_export(network_library, expect_called);
	for_each_export(compute_library, expect_called);
	printf("%d wrong\n", wrong);
	return wrong;
}
