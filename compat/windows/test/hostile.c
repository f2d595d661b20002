// SPDX-License-Identifier: Apache-2.0
/*
 * hostile.c - a Windows program that gives the libraries what it should not, and goes on while the daemon does not.
 *
 * hostile.exe			against a daemon that serves
 * hostile.exe denied		with a wrong token
 * hostile.exe outage		prints "stop" and expects the daemon's death, prints "start" and expects it back
 */
#include "expect.h"

#define DENIED ((HRESULT)0x80070005)
#define NO_SERVER ((HRESULT)0x800706ba)
#define INVALID_JSON ((HRESULT)0x803b001b)
#define WAIT_MS 60000

static const GUID NETWORK = { 0x21111111, 0x2222, 0x3333, { 0x44, 0x44, 1, 2, 3, 4, 5, 6 } };
static const GUID ZERO;
static const WCHAR SETTINGS[] = L"{\"SchemaVersion\":{\"Major\":2,\"Minor\":0},\"Name\":\"hostile\",\"Type\":\"NAT\",\"Ipams\":[{"
				L"\"Subnets\":[{\"IpAddressPrefix\":\"10.78.0.0/24\"}]}]}";
static volatile LONG disconnected, threads_wrong;

static void CALLBACK on_notification(DWORD type, void *context, HRESULT status, const WCHAR *data)
{
	(void)context, (void)status;
	if (type == 0x01000000 && data)
		InterlockedIncrement(&disconnected);
}

static void give_null(void)
{
	void *handle = NULL, *other = NULL;
	WCHAR *result = NULL, *error = NULL;

	expect(((f4)HCN(HcnCreateNetwork))(&NETWORK, SETTINGS, NULL, NULL) == S_OK, "no handle wanted, no error record");
	expect(((f4)HCN(HcnCreateNetwork))(&NETWORK, SETTINGS, &handle, NULL) == (HRESULT)0x803b0010 && !handle,
	       "a failure without room for its record");
	expect(((f3)HCN(HcnOpenNetwork))(&NETWORK, &handle, NULL) == S_OK && handle, "HcnOpenNetwork");
	expect(((f3)HCN(HcnOpenNetwork))(NULL, &other, &error) == E_POINTER && said(error, L"null"), "no ID");
	expect(((f3)HCN(HcnOpenNetwork))(&NETWORK, NULL, NULL) == E_POINTER, "no room for a handle");
	expect(((f4)HCN(HcnCreateNetwork))(&ZERO, NULL, &other, NULL) != S_OK && !other, "no settings");
	expect(((f3)HCN(HcnEnumerateNetworks))(NULL, &result, NULL) == S_OK && said(result, L"21111111"), "no query");
	expect(((f3)HCN(HcnEnumerateNetworks))(L"", NULL, NULL) == E_POINTER, "no room for a list");
	result = NULL;
	expect(((f4)HCN(HcnQueryNetworkProperties))(handle, NULL, &result, NULL) == S_OK && said(result, L"hostile"),
	       "no query of properties");
	expect(((f4)HCN(HcnQueryNetworkProperties))(handle, L"", NULL, NULL) == S_OK, "no room for properties");
	expect(((f3)HCN(HcnModifyNetwork))(handle, NULL, NULL) != S_OK, "no modification");
	expect(((f2)HCN(HcnDeleteNetwork))(NULL, NULL) == E_POINTER, "nothing to delete");
	expect(((f1)HCN(HcnCloseNetwork))(handle) == S_OK, "HcnCloseNetwork");
	expect(((f1)HCN(HcnCloseNetwork))(handle) == E_HANDLE, "closed twice");
	expect(((f3)HCN(HcnModifyNetwork))(handle, L"{}", NULL) == E_HANDLE, "modified after closing");
	expect(((f1)HCN(HcnCloseNetwork))(NULL) == E_HANDLE && ((f1)HCN(HcnCloseEndpoint))((void *)~(ULONG_PTR)0) == E_HANDLE,
	       "handles that never were");
	expect(((f5)HCN(HcnCreateEndpoint))(NULL, &ZERO, L"{}", &other, NULL) == E_HANDLE, "an endpoint of no network");
	expect(((f4)get(compute_library, "HNSCall"))(L"GET", L"/networks/", NULL, NULL) == E_POINTER, "HNSCall: no response");
	expect(((f4)get(compute_library, "HNSCall"))(NULL, NULL, NULL, &result) == E_INVALIDARG && !result, "HNSCall: nothing");
	result = NULL;
	expect(((f4)get(compute_library, "HNSCall"))(L"GET", L"/networks/", NULL, &result) == S_OK && said(result, L"hostile"),
	       "HNSCall: no request");
	expect(((f3)HCN(HcnRegisterServiceCallback))(NULL, NULL, &other) == E_POINTER, "no callback");
	expect(((f1)HCN(HcnUnregisterServiceCallback))(&other) == E_HANDLE, "no registration");
}

static void give_garbage(void)
{
	static const WCHAR *const texts[] = { L"{broken", L"[]", L"null", L"\"text\"", L"{\"Name\":[]}", L"{\"Type\":\"Nothing\"}",
					      L"{\"a\":\"\\ud800\"}", L"\x0001\x0002" };
	size_t long_text = 24 << 20;
	WCHAR *text = malloc((long_text + 1) * sizeof(WCHAR));

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		WCHAR *error = NULL;
		void *handle = NULL;
		HRESULT hr = ((f4)HCN(HcnCreateNetwork))(&ZERO, texts[i], &handle, &error);

		expect(FAILED(hr) && !handle && said(error, L"\"ErrorCode\""), "garbage is refused with a record");
		error = NULL;
		hr = ((f3)HCN(HcnEnumerateNetworks))(i ? texts[i] : L"{\"Filter\":\"{x\"}", &handle, &error);
		CoTaskMemFree(error);
		expect(hr == S_OK || !handle, "a query of garbage");
		CoTaskMemFree(handle);
	}
	expect(((f4)HCN(HcnCreateNetwork))(&ZERO, L"{\"Name\":\"\xd800\"}", NULL, NULL) == E_INVALIDARG, "text that is no UTF-16");
	for (size_t i = 0; text && i < long_text; i++)
		text[i] = L'[';
	if (text) {
		WCHAR *error = NULL;

		text[long_text] = 0;
		expect(FAILED(((f4)HCN(HcnCreateNetwork))(&ZERO, text, NULL, &error)) && said(error, L"ErrorCode"), "24 million brackets");
		text[1000] = 0;
		expect(((f4)HCN(HcnCreateNetwork))(&ZERO, text, NULL, NULL) == INVALID_JSON, "a thousand brackets");
	}
	free(text);
}

static DWORD WINAPI live(void *number)
{
	WCHAR settings[100];
	void *network = NULL;

	swprintf(settings, 100, L"{\"SchemaVersion\":{\"Major\":2},\"Name\":\"%d\"}", (int)(intptr_t)number);
	if (((f3)HCN(HcnOpenNetwork))(&NETWORK, &network, NULL) != S_OK)
		InterlockedIncrement(&threads_wrong);
	for (int i = 0; i < 4; i++) {
		WCHAR *properties = NULL, *error = NULL, *id;
		void *endpoint = NULL;
		WCHAR braced[39] = L"{";
		GUID guid;

		if (((f5)HCN(HcnCreateEndpoint))(network, &ZERO, settings, &endpoint, &error) != S_OK || error ||
		    ((f4)HCN(HcnQueryEndpointProperties))(endpoint, L"", &properties, &error) != S_OK || error ||
		    !(id = wcsstr(properties, L"\"ID\":\""))) {
			InterlockedIncrement(&threads_wrong);
			break;
		}
		wcsncat(braced, id + 6, 36);
		wcscat(braced, L"}");
		if (CLSIDFromString(braced, &guid) != S_OK || ((f1)HCN(HcnCloseEndpoint))(endpoint) != S_OK ||
		    ((f2)HCN(HcnDeleteEndpoint))(&guid, &error) != S_OK || error)
			InterlockedIncrement(&threads_wrong);
		CoTaskMemFree(properties);
	}
	return ((f1)HCN(HcnCloseNetwork))(network) != S_OK;
}

static void live_in_threads(void)
{
	HANDLE threads[16];

	for (int i = 0; i < 16; i++)
		threads[i] = CreateThread(NULL, 0, live, (void *)(intptr_t)i, 0, NULL);
	expect(WaitForMultipleObjects(16, threads, TRUE, WAIT_MS) == WAIT_OBJECT_0, "sixteen threads end");
	expect(!threads_wrong, "sixteen threads create, query and delete endpoints");
}

static void without_the_token(void)
{
	void *handle = NULL;
	WCHAR *error = NULL, *result = NULL;

	expect(((f3)HCN(HcnEnumerateNetworks))(L"", &result, &error) == DENIED && !result && said(error, L"token"), "denied");
	expect(((f4)get(compute_library, "HNSCall"))(L"GET", L"/networks/", L"", &result) == DENIED && !result, "HNSCall: denied");
	expect(((f3)HCN(HcnRegisterServiceCallback))((void *)(uintptr_t)on_notification, NULL, &handle) == DENIED && !handle,
	       "notifications: denied");
}

/* Whether the daemon answers within a minute. */
static int comes_back(void *network)
{
	WCHAR *result = NULL, *error = NULL;
	HRESULT hr = NO_SERVER;

	for (int i = 0; i < WAIT_MS / 100 && hr == NO_SERVER; i++) {
		Sleep(100);
		hr = ((f4)HCN(HcnQueryNetworkProperties))(network, L"", &result, &error);
		CoTaskMemFree(error);
		error = NULL;
	}
	return hr == S_OK && said(result, L"hostile");
}

static void through_an_outage(void)
{
	void *network = NULL, *registration = NULL, *none = NULL;
	WCHAR *error = NULL, *result = NULL;

	expect(((f4)HCN(HcnCreateNetwork))(&NETWORK, SETTINGS, &network, &error) == S_OK, "HcnCreateNetwork");
	expect(((f3)HCN(HcnRegisterServiceCallback))((void *)(uintptr_t)on_notification, NULL, &registration) == S_OK,
	       "HcnRegisterServiceCallback");
	puts("stop");
	fflush(stdout);
	for (int i = 0; i < WAIT_MS / 10 && !disconnected; i++)
		Sleep(10);
	expect(disconnected == 1, "the listener is told that the service is gone");
	expect(((f3)HCN(HcnEnumerateNetworks))(L"", &result, &error) == NO_SERVER && !result && said(error, L"127.0.0.1"),
	       "nobody answers: where, is in the record");
	expect(((f4)get(compute_library, "HNSCall"))(L"GET", L"/networks/", L"", &result) == NO_SERVER && !result,
	       "HNSCall: nobody answers");
	expect(((f3)HCN(HcnRegisterServiceCallback))((void *)(uintptr_t)on_notification, NULL, &none) == NO_SERVER && !none,
	       "nobody to listen to");
	puts("start");
	fflush(stdout);
	expect(comes_back(network), "a handle outlives the daemon");
	expect(((f1)HCN(HcnUnregisterServiceCallback))(registration) == S_OK, "HcnUnregisterServiceCallback");
	expect(((f1)HCN(HcnUnregisterServiceCallback))(registration) == E_HANDLE, "unregistered twice");
	expect(((f1)HCN(HcnCloseNetwork))(network) == S_OK, "HcnCloseNetwork");
}

int main(int count, char **arguments)
{
	const char *what = count > 1 ? arguments[1] : "";

	if (load_libraries())
		return wrong;
	if (!strcmp(what, "denied")) {
		without_the_token();
	} else if (!strcmp(what, "outage")) {
		through_an_outage();
	} else {
		give_null();
		give_garbage();
		live_in_threads();
	}
	if (strcmp(what, "denied"))
		expect(((f2)HCN(HcnDeleteNetwork))(&NETWORK, NULL) == S_OK, "HcnDeleteNetwork");
	printf("%d wrong\n", wrong);
	return wrong;
}
